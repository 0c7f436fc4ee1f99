"""Reference pages, made from what the code itself goes by, while the site is built.

They are not in the repository: made anew for each site, they cannot be out of date, and a change of the code changes
one place. A reader of the repository has the prose in docs/, ``fastpipe COMMAND --help`` and the docstrings.

    configuration   from the table of keys, fastpipe/config/keys.py
    backends        from the table of the box, and the backends' constructors and docstrings
    command_line    from argparse
    api             which public names the site shows, by subject; Sphinx reads their docstrings
    words           types and limits in words, for all of them
"""
