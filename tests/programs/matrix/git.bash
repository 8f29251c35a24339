# What git does with repositories below $1, by absolute paths.
S=${1:?no folder}
export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z' GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b GIT_CONFIG_GLOBAL=$S/config
git config --global init.defaultBranch main; git config --global gc.auto 0
git init -q $S/r; cd $S/r; git rev-parse --show-toplevel --absolute-git-dir
mkdir d; for i in $(seq 30); do echo $i > d/f$i; done; ln -s d/f1 link; git add .; git commit -qm one; git mv d/f1 moved; echo x >> d/f2; git commit -qam two
git branch side HEAD~; git checkout -q side; echo y > y; git add y; git commit -qm three; git checkout -q main; git merge -q --no-edit side
git log --format=%H%d --name-status; git -C $S/r gc -q; git fsck --strict 2>&1; git status --porcelain
echo z > d/f3; git stash -q; git stash pop -q; git diff; git checkout -q d/f3
git clone -q $S/r $S/clone; git -C $S/clone log -1 --format=%H; git clone -q --bare $S/r $S/bare.git; git -C $S/clone remote -v; git clone -q file://$S/bare.git $S/by-url
git worktree add -q $S/tree side; git worktree list; cd $S/clone; echo p > p; git add p; git commit -qm four; git push -q $S/bare.git main; git -C $S/bare.git log -1 --format=%s main
git --git-dir=$S/bare.git rev-list --count --all; git archive HEAD -o $S/a.tar; tar tf $S/a.tar | wc -l; git bundle create -q $S/b main; git bundle verify -q $S/b; git grep -n 17; git ls-files | wc -l
