"""The subcommands of `d2vpr`: each parses its options, calls the library and prints what came back."""
