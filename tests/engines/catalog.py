"""The Glue catalogue, as Trino reads it: what `catalog sync` registers of lakes on S3, for Athena and for Redshift Spectrum.

ministack is S3 and Glue. run.py calls `make`. `ask`, within ask_trino.py, declares nothing: Trino, which is Athena's engine, must
find all tables and views by the catalogue alone. Trino's connector for Hive, in place of Redshift Spectrum, must find the rows by
the partitions, and by the files that the manifests list.
"""

import json
import sys
import urllib.request

import lakes
from relations import RELATIONS, TABLES
from trino_process import Client

# Readers, and the relations that each must find.
READERS = {"athena-catalog": RELATIONS, "redshift-catalog": TABLES}
# Part of the events of the local lake: the test server is slow.
SCALE = 0.25
GLUE = (
    "hive.metastore=glue\nhive.metastore.glue.region={region}\nhive.metastore.glue.endpoint-url={endpoint}\n"
    "hive.metastore.glue.aws-access-key={key}\nhive.metastore.glue.aws-secret-key={secret}\n"
    "fs.native-s3.enabled=true\ns3.region={region}\ns3.endpoint={endpoint}\ns3.path-style-access=true\n"
    "s3.aws-access-key={key}\ns3.aws-secret-key={secret}\n"
)
# Trino's catalog of each reader, and its connector. Athena's has the name that the views have for it.
CATALOGS = {
    "athena-catalog": ("awsdatacatalog", "connector.name=delta_lake\n"),
    "redshift-catalog": ("spectrum", "connector.name=hive\nhive.timestamp-precision=MICROSECONDS\n"),
}


def database(reader, lake):
    return f"{reader.replace('-', '_')}_{lake}"


def make(programs, folder, endpoint):
    """Makes lakes on the S3 server and registers them for both engines; returns the lakes. A second run must change nothing."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{lakes.BUCKET}", method="PUT"), timeout=60).close()
    made = lakes.make(programs, folder, SCALE, endpoint)
    for lake in made:
        for reader in READERS:
            command = [
                "synclake", "catalog", "sync", "--lake", lake.place, "--engine", reader.partition("-")[0],
                "--database", database(reader, lake.name), "--format", "json",
            ]
            lake.run(*command)
            changed = [entry for entry in json.loads(lake.run(*command))["entries"] if entry["action"] != "none"]
            if changed:
                sys.exit(f"error: a second {' '.join(command)} would change {changed[:3]}")
    return made


def job_of(made, endpoint):
    return {"endpoint": endpoint, "lakes": [{"name": lake.name} for lake in made]}


def properties(job):
    """Returns the properties of Trino's catalogs. The folder of the server stays a place holder."""
    aws = lakes.AWS
    glue = GLUE.format(
        endpoint=job["endpoint"], region=aws["AWS_REGION"], key=aws["AWS_ACCESS_KEY_ID"], secret=aws["AWS_SECRET_ACCESS_KEY"])
    return {name: connector + glue for name, connector in CATALOGS.values()}


def ask(answers, port):
    for reader in READERS:
        client = Client(port, CATALOGS[reader][0])
        for lake in answers.job["catalog"]["lakes"]:
            schema = database(reader, lake["name"])
            try:
                listed = {row[0] for row in client.run(f"SHOW TABLES FROM {schema}")[1]}
                if listed != set(READERS[reader]):
                    raise ValueError(f"it lists {sorted(listed)}, not {sorted(READERS[reader])}")
            except Exception as error:
                answers.error(reader, lake, f"SHOW TABLES FROM {schema}", error)
            for relation in READERS[reader]:
                answers.take(
                    reader, lake, relation,
                    lambda: client.table(f"{schema}.{relation}", has_zones=reader == "athena-catalog"))
