"""The demo: every kind of job through a real broker, a real worker and a real database."""
