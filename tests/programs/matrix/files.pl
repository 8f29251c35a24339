# What Perl programs do with files below $ARGV[0], by absolute paths.
use strict; use warnings; use Fcntl qw(:DEFAULT :flock); use File::Find; use File::Copy qw(copy move);
use File::Path qw(make_path remove_tree); use File::Temp qw(tempfile tempdir); use Cwd qw(getcwd abs_path); use IO::Handle;
my $root = $ARGV[0];
sub at { "$root/$_[0]" }
make_path(at('pl/a/b'));
open(my $f, '>', at('pl/text')) or die $!; print $f "one\n"; close $f or die $!;
open($f, '>>', at('pl/text')) or die $!; print $f "two\n"; close $f;
open($f, '+<', at('pl/text')) or die $!; flock($f, LOCK_EX) or die $!; seek($f, 4, 0); print $f 'TWO'; close $f;
open($f, '<', at('pl/text')) or die $!; print map { "read $_" } <$f>; close $f;
sysopen($f, at('pl/raw'), O_RDWR | O_CREAT | O_EXCL, 0640) or die $!;
syswrite($f, 'x' x 5000) == 5000 or die $!; truncate($f, 4000) or die $!; $f->sync or die $!; close $f;
open(my $dup, '>&', \*STDOUT) or die $!; close $dup;
rename(at('pl/raw'), at('pl/a/renamed')) or die $!;
link(at('pl/text'), at('pl/hard')) or die $!; symlink('text', at('pl/soft')) or die $!;
symlink(at('pl/a'), at('pl/absolute')) or die $!;
print readlink(at('pl/soft')), ' ', readlink(at('pl/absolute')), ' ', abs_path(at('pl/absolute/b')), "\n";
chmod(0604, at('pl/text')) == 1 or die $!; utime(1000, 2000, at('pl/text')) == 1 or die $!;
chown(-1, $) + 0, at('pl/text')) == 1 or die $!;
my @info = stat(at('pl/soft')); print "$info[7] $info[2] $info[3] $info[9] ", (-l at('pl/soft')) + 0, "\n";
print -r at('pl/text') ? 1 : 0, -d at('pl') ? 1 : 0, -e at('none') ? 1 : 0, "\n";
truncate(at('pl/hard'), 3) or die $!;
copy(at('pl/text'), at('pl/copied')) or die $!; move(at('pl/copied'), at('pl/a/moved')) or die $!;
my @found; find({ wanted => sub { push @found, $File::Find::name }, no_chdir => 1 }, $root); print join("\n", sort @found), "\n";
@found = (); find(sub { push @found, "$File::Find::dir $_" }, $root); print join("\n", sort @found), "\n";
print join(' ', glob(at('pl/*'))), "\n";
opendir(my $d, at('pl')) or die $!; print join(' ', sort readdir $d), "\n"; closedir $d;
my ($t, $name) = tempfile(DIR => $root); print $t 'x'; close $t; unlink $name or die $!;
rmdir tempdir(DIR => $root) or die $!;
chdir(at('pl/a')) or die $!; print getcwd(), "\n"; open($f, '<', '../text') or die $!; print <$f>; close $f;
print `cat $root/pl/text`; system('cp', at('pl/text'), at('pl/by-cp')) == 0 or die;
{ local %ENV = (); print qx{/bin/cat $root/pl/by-cp}; system("/bin/echo more >> $root/pl/by-cp") == 0 or die; }
open(my $pipe, '|-', "cat > $root/pl/by-pipe") or die $!; print $pipe "through a pipe\n"; close $pipe or die;
open($f, '<', at('pl/by-pipe')) or die $!; print <$f>; close $f;
{ local $^I = '.bak'; local @ARGV = (at('pl/by-cp')); while (<>) { s/more/MORE/; print } }
open($f, '<', at('pl/by-cp')) or die $!; print <$f>; close $f;
open($f, '<', at('none')) or print "$!\n"; mkdir(at('pl')) or print "$!\n"; rmdir(at('pl')) or print "$!\n";
unlink(at('pl/by-cp.bak')) == 1 or die $!; mkdir(at('pl/gone')) or die $!; rmdir(at('pl/gone')) or die $!;
remove_tree(at('pl/a/b'));
print "done\n";
