"""What runs in a process of its own: one measurement of one engine. A task goes in as JSON, an answer comes out."""
