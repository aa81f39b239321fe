"""The one HTTP door to the providers: send, retry, read, and what failures mean."""
