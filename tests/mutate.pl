# mutate.pl MUTATIONS SOURCE FOLDER: writes the source with all mutations, each switched by
# MUTATED(number), and the table of them, into the folder. The old text of each must be found once,
# however it is broken into lines; between @@ and @@ is what becomes the new, if not all.
use strict;
use warnings;

sub slurp { local (@ARGV, $/) = @_; <> }

my ($list, $source, $folder) = @ARGV;
my $code = slurp($source);
my (@edits, $table, $number);
for (split /\n(?=\[)/, slurp($list)) {
    my ($name, $how, $old, $new) = /^\[(.*?)\] (.*)\n((?:- .*\n)+)((?:\+ .*\n?)+)/ or next;
    s/^[-+] //gm, s/\s+$// for $old, $new;
    my ($before, $part, $after) = $old =~ /(.*)@@(.*)@@(.*)/s ? ($1, $2, $3) : ('', $old, '');
    my ($b, $p, $a) = map { join '\s+', map { quotemeta } split ' ' } $before, $part, $after;
    my @found;
    push @found, [$-[1], $+[1]] while $code =~ /$b\s*($p)\s*$a/g;
    die "$list: [$name] is found " . @found . " times in $source: make it say what is meant there\n"
        if @found != 1;
    $number++;
    my $both = $part =~ /;$/ ? "{ if (MUTATED($number)) { $new } else { $part } }"
                             : "(MUTATED($number) ? ($new) : ($part))";
    push @edits, [@{$found[0]}, $both, $name];
    $table .= "MUTATION($number, \"$name\", " .
        ($how =~ /^by hand: (\w+)$/  ? "NULL, 0, $1)\n"
         : $how =~ /^(\w+), (\d+)$/ ? "\"$1\", $2, NULL)\n"
                                    : die "$list: [$name]: what is \"$how\"?\n");
}
my $end = length $code;
for (sort { $b->[0] <=> $a->[0] } @edits) {
    die "$list: [$_->[3]] overlaps with another\n" if $_->[1] > $end;
    substr($code, $_->[0], $_->[1] - $_->[0]) = $_->[2];
    $end = $_->[0];
}
sub spill { open my $file, '>', $_[0] or die "$_[0]: $!\n"; print $file $_[1]; close $file or die }
spill("$folder/mutated.c", $code);
spill("$folder/mutations.h", $table);
