"""The parts of deploy/try. Each is a function that runs what is shipped and yields a sentence for each thing that is wrong; its name is
what it states."""
