"""Which provider answers which model."""

from collections.abc import Mapping

from core.settings import Settings
from providers.anthropic import Anthropic
from providers.base import Provider
from providers.offline import Offline
from providers.openai import OpenAI

PROVIDER_OF = {
    "claude-sonnet-4-6": Anthropic.name,
    "gpt-4o": OpenAI.name,
    "gpt-4o-mini": OpenAI.name,
    "gpt-4-turbo": OpenAI.name,
    "gpt-3.5-turbo": OpenAI.name,
}


def connect(settings: Settings) -> Mapping[str, Provider]:
    """The provider of each model; with OFFLINE=1, the offline one for all."""
    if settings.offline:
        return dict.fromkeys(PROVIDER_OF, Offline())
    providers: list[Provider] = [Anthropic(settings), OpenAI(settings)]
    by_name = {provider.name: provider for provider in providers}
    return {model: by_name[name] for model, name in PROVIDER_OF.items()}
