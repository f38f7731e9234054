"""`calotype.wsgi:application`, for uWSGI, mod_wsgi or another gunicorn.

It reads the configuration in `$OS_GLANCE_CONFIG_DIR` or `/etc/calotype`. `calotype serve` does not use this module: it
starts its own gunicorn (`server.py`) with the same `app.build`.
"""

from oslo_log import log

from calotype import app, config

conf = config.load()
log.setup(conf, "calotype")
application = app.build(conf).wsgi
