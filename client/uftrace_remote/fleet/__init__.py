"""Many agents as one: addressing, inventory, and asking all of them at once."""
