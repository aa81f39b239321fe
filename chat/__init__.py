"""One chat completion: from a valid request to its answer in OpenAI's form and its usage record."""
