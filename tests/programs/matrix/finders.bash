# What find, grep, sed, awk, tar, rsync and gzip do with files below $1, by absolute paths.
S=${1:?no folder}
mkdir -p $S/d/a $S/d/b; for i in 1 2 3; do echo line $i > $S/d/a/f$i; done; touch -d @1000 $S/d/a/f1; touch -d @900 $S/d/a/f2; ln -s $S/d/a $S/link; ln -s ../a/f1 $S/d/b/rel
find $S | sort; find -L $S/link -name 'f*' | sort; find $S -type f ! -newer $S/d/a/f1 | sort; find $S -samefile $S/d/a/f1; find $S -type l -printf '%p %l\n' | sort
find $S -type f -exec grep -l 'line 2' {} +; find $S -name f3 -execdir pwd ';'; find $S/d -name b -prune -o -print | sort; find $S -empty; find $S -maxdepth 1 -perm -u=w | sort
grep -rn line $S/d | sort; grep -r --include=f1 line $S; sed -i 's/line/LINE/' $S/d/a/f1; sed -i.bak -e 1d $S/d/a/f2; sed -n w$S/written $S/d/a/f1; cat $S/written
sed --follow-symlinks -i s/1/one/ $S/d/b/rel; awk -v out=$S/by-awk '{ print > out; print FILENAME }' $S/d/a/f1; cat $S/by-awk
xargs -n1 echo < $S/d/a/f3; diff -r $S/d/a $S/d/b || true; cmp $S/d/a/f1 $S/d/a/f3 || true
tar -C $S -cf $S/t.tar d link; tar tf $S/t.tar; mkdir $S/x; tar -C $S/x -xpf $S/t.tar; tar -xf $S/t.tar -C $S/x --overwrite d/a/f1; tar -czf $S/t.tgz -C $S/x d; tar -tzf $S/t.tgz
tar -rf $S/t.tar -C $S by-awk; tar --delete -f $S/t.tar by-awk; tar -df $S/t.tar -C $S; tar -cf - -C $S d | tar -xf - -C $S/x; diff -r $S/d $S/x/d
rsync -a $S/d/ $S/synced/; rsync -ai --delete $S/x/d/ $S/synced/; rsync -a --inplace $S/d/ $S/inplace; rsync -a --link-dest=$S/synced $S/d/ $S/linked/; stat -c %h $S/linked/a/f3
rsync -a --remove-source-files $S/x/d/ $S/away; gzip -k $S/d/a/f1; zcat $S/d/a/f1.gz; gunzip -f $S/d/a/f1.gz
find $S/x -delete; find $S -type f -name '*.tar' -ok true ';' < /dev/null 2> /dev/null; find $S | sort; find $S/none || echo status $?
