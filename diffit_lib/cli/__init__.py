"""The command line: `diffit VERB`."""
