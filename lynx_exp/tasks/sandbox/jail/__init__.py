"""What runs inside: supervisor, fork servers, testers and candidates. Standard library only, relative imports only.

The bare interpreter of a run imports this folder as the package `jail`, without the rest of lynx_exp; see
`lynx_exp.tasks.sandbox` for the whole.
"""
