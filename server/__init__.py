"""gunicorn's threaded worker, hardened: all that reaches into gunicorn stands in this folder."""
