"""Pure functions of tensors: no files, no plots, no global state, no random numbers of the user's.

`matrices` defines the one layout every spectral analyzer works on, `spectrum` the quantities,
`metrics` the table by which a tracker and a sweep call them by name.
"""
