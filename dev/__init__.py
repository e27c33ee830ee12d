"""Private servers for the demo and the tests: standard library only, so that it runs before any install."""
