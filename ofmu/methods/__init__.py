"""Unlearning methods. Each method is one file, and all methods follow one contract.

The same code trains, searches and scores every method. A method of the user is a subclass of
:class:`ofmu.methods.base.Method` that :func:`register` decorates. A config names the method and its module:
``method: {name: mine, module: my_package.my_method}``.
"""

from ofmu.methods.registry import BUILT_IN, method_class, register

__all__ = ["BUILT_IN", "method_class", "register"]
