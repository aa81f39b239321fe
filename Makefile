# Shorthands.
.PHONY: run check

run:
	@bin/serve

check:
	@bin/check
