"""Settings of gunicorn itself, which it reads from the directory that it is started in.

shmcow needs none of them: it works with any kind of worker, and with preload_app on or off. With it on, the code is
loaded once, in the master, and HUP does not load it again; a published configuration reaches the workers all the same.
"""

workers = 4
preload_app = True
