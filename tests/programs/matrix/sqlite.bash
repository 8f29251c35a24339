# What sqlite3 does with databases below $1, by absolute paths.
S=${1:?no folder}
for mode in delete wal; do
    sqlite3 $S/$mode "pragma journal_mode=$mode; create table t (v); insert into t values (1), (2); create index i on t (v)"
    sqlite3 $S/$mode 'begin; update t set v = v + 1; commit; select sum(v) from t; vacuum; pragma integrity_check; pragma database_list'
done
sqlite3 $S/delete "attach '$S/wal' as w; select count(*) from main.t, w.t" ".backup $S/backup" ".output $S/dump" .dump
cat $S/dump; sqlite3 $S/restored < $S/dump; sqlite3 $S/restored ".read $S/dump" > $S/again 2>&1 || wc -l < $S/again
sqlite3 $S/none/db 'create table t (v)' 2>&1 | grep -c unable; ls $S
