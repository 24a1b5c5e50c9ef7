"""A task yields problems with an id and a difficulty, makes a prompt of each, extracts and checks an answer."""
