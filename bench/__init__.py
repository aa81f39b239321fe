"""The bench: what the service costs, beside its peers, measured on one machine."""
