"""`key=value` arguments, as the commands of the project take them, for benchmarks without a config."""

from __future__ import annotations

import sys


def key_values(page: str, defaults: dict[str, str]) -> dict[str, str]:
    """The command line's `key=value` over the defaults. Ends with the page for --help, with one line for what is wrong.

    page: the module's docstring, which says what each key means.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(page.strip())
        print("\nDefaults: " + ", ".join(f"{key}={value or 'none'}" for key, value in defaults.items()))
        sys.exit()
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in defaults or not equals:
            sys.exit(f"{argument}: expected KEY=VALUE, KEY one of {', '.join(defaults)} (--help says more)")
        given[key] = value
    return defaults | given
