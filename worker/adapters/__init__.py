"""One outside thing each; adapters know neither the core nor each other."""
