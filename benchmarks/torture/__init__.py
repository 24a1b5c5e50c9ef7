"""Each file tries to break the project in one way, and counts how often it could."""
