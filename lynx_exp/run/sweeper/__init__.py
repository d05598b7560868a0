"""From the words of a command line, or a study's file, to the configurations of its cells."""
