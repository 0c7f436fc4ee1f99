"""A service under load: people search in what was read, and fastpipe answers beside four other ways of doing it."""
