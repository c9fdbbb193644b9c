"""Native code: what runs in targets (target/) and in the agent beside stopped targets (host/)."""
