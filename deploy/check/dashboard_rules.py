"""Prints every query of the dashboards as a recording rule, so that promtool can parse it: dashboard_rules.py DIRECTORY"""

import json
import pathlib
import sys

rules = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            name = f"check:{path.stem}_{panel['id']}_{target['refId']}"
            rules.append({"record": name, "expr": target["expr"].replace("$__rate_interval", "5m")})
json.dump({"groups": [{"name": "dashboards", "rules": rules}]}, sys.stdout)
