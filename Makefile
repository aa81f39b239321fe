# The two commands of the README; each sets up all that it needs.
.PHONY: run check

run:
	@bin/setup requirements.txt
	@bin/serve

check:
	@bin/setup requirements-dev.txt
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest -n 3 --dist loadfile
