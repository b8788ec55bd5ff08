"""A run as it trains: followed while it is written, shown in a terminal, in lines, or on a local page.

`follower` reads what is new and keeps it; `picture` says what of it is shown, in pure functions that know of
no screen; `terminal`, `lines` and `web` show it. Textual is imported only in `terminal`, bokeh only in `web`.
"""
