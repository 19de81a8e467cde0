"""Small programs in the shape of public trainers.

Their optimizer path was written anew from reading. Each is run without jaxclip and with it, and
gives the same numbers.
"""
