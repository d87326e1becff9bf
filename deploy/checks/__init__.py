"""The checks of deploy/check. Each is a function that yields a sentence for each thing that is wrong; its name is what it states."""
