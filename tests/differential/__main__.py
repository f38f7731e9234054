import sys, tempfile, os, json, base64
sys.path.insert(0,'/tmp/labshim')
import labkeystone
from pathlib import Path
from bench import services
from bench.glance import Glance, install
from tests.support import Service, free_port, PASSWORD
from tests import support
from calotype.auth import basic
from tests.differential.both import Both, Side
from tests.differential.script import SECTIONS, PERSONAS

CONF = "[DEFAULT]\nenabled_backends = fast:file,cheap:file\n[glance_store]\ndefault_backend = fast\n[fast]\nfilesystem_store_datadir = {d}/fast\n[cheap]\nfilesystem_store_datadir = {d}/cheap\n"
def main():
    name = tempfile.mkdtemp(prefix='calotype-differential-')
    d = Path(name)
    d.chmod(0o755)
    tokens = {p: labkeystone.token(p) for p in PERSONAS if p not in (None,'nobody')}
    projects = {p: t[1] for p,t in tokens.items()}
    urls = [services.fresh("mariadb", d, 256) for _ in range(2)]
    glance = Glance(install(Path('.peer').resolve()), d/'glance', urls[0], ("fast","cheap"), authtoken=labkeystone.AUTHTOKEN, settings="enabled_import_methods = []")
    glance.prepare(); services.sync(urls[1])
    state = d/'state'
    state.mkdir(mode=0o700)
    users = {n: basic.make_user(n, projects[n], support.USERS[n][1], PASSWORD) for n in projects}
    basic.write_users(state/'users.json', users)
    calo = Service(state, CONF.format(d=d), ("--workers","1"), database=urls[1])
    try:
        glance.start(); calo.start()
        g = {p: {"X-Auth-Token": t[0]} for p,t in tokens.items()} | {None: {}, "nobody": {"X-Auth-Token": "wrong"}}
        def b(u,p): return {"Authorization": "Basic "+base64.b64encode(f"{u}:{p}".encode()).decode()}
        c = {p: b(p,PASSWORD) for p in tokens} | {None: {}, "nobody": b("nobody","x")}
        both = Both(Side(f"http://127.0.0.1:{glance.port}", g, str(d/'glance')), Side(calo.url, c, str(d)), projects)
        both.show = os.environ.get('SHOW','')
        only=os.environ.get('ONLY','').split()
        for section in SECTIONS:
            if only and section.__name__ not in only: continue
            both.section = section.__name__
            n=both.number
            try:
                section(both)
            except Exception as e:
                import traceback; traceback.print_exc()
            print(section.__name__, both.number-n, flush=True)
        import pickle
        pickle.dump(both.differences, open('/tmp/peer-diffs.pkl','wb'))
        print(both.number, both.statuses, len(both.differences))
        with open('/tmp/peer-diffs.txt','w') as f:
            for x in both.differences: print(x, file=f)
    finally:
        glance.stop()
        if calo.process: calo.stop()
main()
