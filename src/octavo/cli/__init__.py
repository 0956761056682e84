"""The command line: one file a command. None of them imports torch before it has checked its arguments."""
