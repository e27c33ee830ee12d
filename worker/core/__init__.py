"""The work: from a delivery to its reply. Start with `processor`."""
