# What PostgreSQL does with a cluster below $1, by absolute paths: it is made, and used without a server.
S=${1:?no folder}
# Debian does not put it on the path.
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); [ -x $bin/initdb ] || { echo 'no initdb: apt-get install postgresql' >&2; exit 1; }
$bin/initdb -D $S/data -N -A trust -U pg --no-locale -E UTF8 --no-instructions > $S/said; grep -c ok $S/said
ls $S/data; cat $S/data/PG_VERSION
echo 'create table t as select 41 + 1 as answer; select answer from t' | tr ';' '\n' |
    $bin/postgres --single -D $S/data -F -c log_min_messages=fatal postgres | grep -o 'answer = "42"'
$bin/pg_controldata $S/data | grep 'cluster state'
