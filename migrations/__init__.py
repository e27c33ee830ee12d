"""Database revisions, applied by `openai-worker migrate`."""
