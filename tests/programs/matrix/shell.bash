# What bash itself does with files below $1, by absolute paths.
S=${1:?no folder}
without_lines() { sed 's/line [0-9]*: //'; }
echo one > $S/f; echo two >> $S/f; cat < $S/f; read -r line < $S/f; echo "$line"
exec 7<> $S/f; cat <&7; echo three >&7; exec 7>&-; cat $S/f
cat > $S/here <<EOF
in $S
EOF
cat $S/here; cat <<< "$(< $S/here)"; cat <<< "$(seq 20000)" | tail -1
cd $S; pwd; mkdir -p $S/a/b; cd a/b; pwd; cd ../..; pwd; cd /; cd $S/a/../a; pwd; pwd -P; cd - > /dev/null
pushd $S/a > /dev/null; dirs -l | cut -d' ' -f1; popd > /dev/null
[ -f $S/f ] && [ -d $S/a ] && [ ! -e $S/none ] && [ -w $S/f ] && [[ $S/f -ef $S/a/../f ]] && echo tests
for name in $S/*; do echo "$name"; done
shopt -s globstar; echo $S/**; compgen -f $S/a
echo 'echo sourced $1 ${BASH_SOURCE[0]}' > $S/lib; . $S/lib arg; source $S/lib none
printf '#!/bin/bash\necho $0 $1; pwd\n' > $S/script; chmod +x $S/script; cd $S; $S/script x; (cd a; ../script y)
printf 'echo no interpreter $0\n' > $S/plain; chmod +x $S/plain; $S/plain
PATH=$S:$PATH; script by-path; type script; hash -t script; command -v plain
set -o noclobber; (echo x > $S/f) 2>&1 | without_lines; echo y >| $S/f; set +o noclobber
umask 027; echo z > $S/private; stat -c '%a %n' $S/private; diff <(cat $S/f) $S/f; mapfile -t lines < $S/f; echo ${#lines[@]}
cat $S/none || echo failed; (cd $S/none) 2>&1 | without_lines; ($S/none) 2>&1 | without_lines; ($S/f) 2>&1 | without_lines
exec 8> $S/eight; (echo from a child >&8); bash -c 'echo from a grandchild >&8'; exec 8>&-; cat $S/eight
echo through /dev/fd 9> $S/nine > /dev/fd/9; cat $S/nine; { echo both; echo streams >&2; } &> $S/both; cat $S/both
HISTFILE=$S/history; history -s remembered; history -w; cat $S/history
env -i /bin/cat $S/here; (exec cat $S/f); trap 'cat $S/f' EXIT
