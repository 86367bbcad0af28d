"""Tables and graphs for other tools: Perfetto, Model Explorer, GraphML, DOT, CSV, JSON.

``split`` reads a partition back from its directory, ``timeline`` says when what runs and moves,
``perfetto``, ``explorer``, ``graphs`` and ``records`` each write a format.
"""
