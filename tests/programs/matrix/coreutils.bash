# What coreutils do with files below $1, by absolute paths.
S=${1:?no folder}
mkdir -p $S/d/e/f; seq 1000 > $S/d/n; touch -d '2001-02-03 04:05:06.5' $S/d/t; ln $S/d/n $S/d/hard; ln -s n $S/d/soft
ln -s $S/d $S/absolute; ln -sfn $S/d/e $S/absolute; ln -r -s $S/d/n $S/d/e/relative; mkfifo $S/pipe; truncate -s 5000 $S/d/sparse
cp -a $S/d $S/copy; cp $S/d/n $S/d/e/; cp -r $S/absolute/. $S/linked; cp -l $S/d/n $S/d/link; cp -s $S/d/n $S/symbolic; cp -u $S/d/n $S/copy/n
mv $S/copy/n $S/moved; mv $S/copy $S/renamed; mv -n $S/moved $S/d/n; mv -t $S/renamed $S/moved; install -m 711 -D $S/d/n $S/i/n/stalled
rm $S/d/link; rm -r $S/linked; rm -f $S/none; rmdir $S/d/e/f; unlink $S/symbolic; mkdir $S/p $S/p/q; rmdir $S/p/q $S/p
chmod -R u=rwX,go= $S/renamed; chown -R :$(id -g) $S/d; chmod 1770 $S/i; stat -c '%n %F %a %h' $S/d/* $S/i; stat -f -c %l $S
ls $S; ls -lR --time-style=+ $S/d | tr -s ' ' | cut -d' ' -f1,2,6-; ls -d $S/*; du -a --apparent-size $S/d/n; df $S > $S/df; wc -l < $S/df
readlink $S/absolute; readlink -f $S/absolute/..; realpath $S/d/soft $S/d/../i; realpath --relative-to=$S/d $S/i/n; basename $S/d; dirname $S/d
head -1 $S/d/n; tail -2 $S/d/soft; wc -l $S/d/n; sort -r $S/d/n -o $S/sorted; head -1 $S/sorted; split -l 400 $S/d/n $S/part.; cat $S/part.* | cmp - $S/d/n
csplit -s -f $S/cs $S/d/n 500; sum $S/cs00; sha256sum $S/d/n > $S/sums; sha256sum -c $S/sums; tee $S/tee < $S/d/n | tail -1
shuf -n 3 $S/d/n -o $S/shuf; wc -l $S/shuf; comm -12 $S/d/n $S/d/n 2> /dev/null | wc -l
dd if=$S/d/n of=$S/dd bs=100 count=3 conv=fsync status=none; dd if=/dev/zero of=$S/dd bs=10 seek=5 count=1 conv=notrunc status=none; cksum $S/dd
mktemp -p $S tmp.XXXXXX | sed 's/[^.]*$//'; mktemp -d $S/dir.XXXXXX | sed 's/[^.]*$//'; rm -r $S/tmp.* $S/dir.*
sync $S/dd; sync -f $S; [ $S/d/n -ef $S/d/hard ]; shred -u -n 1 $S/dd
for failing in "rm $S/none $S/d" "cp $S/none $S/d" "mkdir $S/d $S" "cat $S/d" "mv $S/d $S/d/e" "rmdir $S/d" "ln $S/d/n $S/d/n" "touch $S/none/x"; do
    $failing 2>&1 || echo status $?
done
cd $S/d; pwd; /bin/pwd; /bin/pwd -P; timeout 5 tail -1 $S/d/n; nice cat $S/d/t; env -i cat $S/sums; chroot $S true 2> /dev/null || echo no chroot
/usr/bin/[ -e $S/d/e ]; /usr/bin/test -L $S/absolute; echo $S/sums > $S/names; xargs -a $S/names wc -l; tac $S/names; od -c $S/shuf | wc -l; ls $S
