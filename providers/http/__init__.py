"""The one HTTP door to the providers: send, retry, read, and what failures mean."""

from collections.abc import Mapping

from core.settings import Settings
from providers import VENDOR_OF
from providers.base import Provider
from providers.http.transport import HTTPProvider
from providers.offline import Offline


def connect(settings: Settings) -> Mapping[str, Provider]:
    """The provider of each model; with OFFLINE=1, the offline one for all."""
    if settings.offline:
        return dict.fromkeys(VENDOR_OF, Offline())
    vendors = {kind: kind(settings) for kind in VENDOR_OF.values()}
    secrets = [vendor.key for vendor in vendors.values() if vendor.key]
    providers = {kind: HTTPProvider(vendors[kind], settings, secrets) for kind in vendors}
    return {model: providers[kind] for model, kind in VENDOR_OF.items()}
