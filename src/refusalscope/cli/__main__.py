"""`python -m refusalscope.cli`: the same as the `refusalscope` command."""

from refusalscope.cli.app import main

main()
