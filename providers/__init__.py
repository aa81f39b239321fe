"""Which provider answers which model."""

from providers.anthropic import Anthropic
from providers.base import Vendor
from providers.openai import OpenAI

VENDOR_OF: dict[str, type[Vendor]] = {
    "claude-sonnet-4-6": Anthropic,
    "gpt-4o": OpenAI,
    "gpt-4o-mini": OpenAI,
    "gpt-4-turbo": OpenAI,
    "gpt-3.5-turbo": OpenAI,
}
PROVIDER_OF = {model: vendor.name for model, vendor in VENDOR_OF.items()}
