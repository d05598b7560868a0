"""`python -m lynx_exp` is `lynx-exp`."""

from lynx_exp.cli import main

main()
