"""An atlas asked over HTTP: its page with a model behind it, for one's own words and texts.

Nothing in a request names a file, and nothing is stored. ``bodies`` says what is asked and answered,
``answering`` computes it, ``guard`` decides who may ask, ``app`` joins them, ``run`` starts the server.
"""
