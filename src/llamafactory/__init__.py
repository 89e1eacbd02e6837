"""llamafactory: fine-tune, align, evaluate, export and serve large language models on your own data.

Importing the package costs nothing: every heavy library is imported by the command that needs it.
"""

from .extras.version import VERSION


__version__ = VERSION

__all__ = ["__version__"]
