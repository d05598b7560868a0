"""One policy a file; the file name is the name that users type. Files of extensions count among them."""

from lynx_exp.extensions import extended

__path__ += extended("policies")
