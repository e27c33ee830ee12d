"""OpenAI through its official SDK."""
