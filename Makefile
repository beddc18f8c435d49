# make  builds ./estoraje    make run  three nodes behind nginx, on port 8000    make test  all tests
# make sim  SEEDS=n, or SEED=n TRACE=1     make install  PREFIX=/usr/local DESTDIR=     make uninstall
# make asan tsan fuzz mutants bench fmt fixture loc clean    Debian packages that are missing get installed.
CC = gcc
CFLAGS = -O2 -g -std=gnu11 -Wall -Wextra -Werror -Wshadow -D_GNU_SOURCE $(SANITIZE)
LIBS = -lmicrohttpd -lgnutls -lcurl -lxxhash -lpthread
CODE = estoraje.c ring.c ring.h
PREFIX = /usr/local
TO = $(DESTDIR)$(PREFIX)
# Where to build (asan and tsan have other places), and what to test, the cheap first.
BUILD = build
BIN = estoraje
NAMES = $(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c))
TESTS = $(patsubst sim,sim mutants mutations,$(filter $(NAMES),ring history unit sim)) $(filter-out ring history unit sim,$(NAMES))
export ESTORAJE_BIN = $(abspath $(BIN))
export CK_DEFAULT_TIMEOUT = 300
$(shell mkdir -p $(BUILD))

# All tests are linked with the same objects. Those of the program's inside #include estoraje.c.
VPATH = tests
HELPERS = $(patsubst %.c,$(BUILD)/%.o,ring.c page.c $(notdir $(wildcard tests/history.c tests/cluster.c)))
LINK_TEST = $(CC) $(CFLAGS) -o $@ $< $(filter %.o,$^) $(LIBS) -lcheck_pic -lsubunit -lm
$(BIN): $(CODE) $(BUILD)/page.o ; $(CC) $(CFLAGS) -o $@ $(filter-out %.h,$^) $(LIBS)
$(BUILD)/page.o: ring.html | packages-build
	printf '%s\n' '.section .rodata' '.global ring_html_start, ring_html_end' 'ring_html_start:' \
	    '.incbin "$<"' 'ring_html_end:' '.section .note.GNU-stack' | $(CC) -x assembler -c -o $@ -
$(BUILD)/%.o: %.c %.h | packages-test ; $(CC) $(CFLAGS) -c -o $@ $<
$(BUILD)/test_%: test_%.c $(CODE) $(HELPERS) ; $(LINK_TEST)
$(BUILD)/test_guard: $(BUILD)/forge.o
$(BUILD)/forge.o: $(CODE)
$(BUILD)/test_mutants: test_sim.c $(CODE) $(HELPERS) ; $(LINK_TEST) -DMUTANTS
$(BUILD)/test_mutations: test_sim.c $(CODE) $(HELPERS) mutate.pl mutations
	perl tests/mutate.pl tests/mutations estoraje.c $(BUILD)
	$(LINK_TEST) -DMUTANTS -DMUTATIONS -DCODE='"mutated.c"' -I$(BUILD) -I.
$(BUILD)/test_page $(BUILD)/test_clients: $(BUILD)/test_%: | packages-%
$(BUILD)/fuzz_%: fuzz_%.c $(CODE) $(BUILD)/page.o | packages-fuzz
	clang $(CFLAGS) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o $@ $< ring.c $(BUILD)/page.o $(LIBS)
$(BUILD)/bench_bare: bench_bare.c ; $(CC) $(CFLAGS) -o $@ $< -lmicrohttpd
packages-%: ; @tests/install.sh $*

test: $(TESTS:%=$(BUILD)/test_%)
sim: $(BUILD)/test_sim
mutants: $(BUILD)/test_mutants $(BUILD)/test_mutations
sim mutants: export CK_TIMEOUT_MULTIPLIER = 1000
test sim mutants: $(BIN) ; @for test in $(filter $(BUILD)/test_%,$^); do $$test || exit 1; done
asan: ; $(MAKE) test BUILD=build/asan BIN=build/asan/estoraje TESTS="$(filter $(NAMES),ring unit sim)" \
	    SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all"
tsan: ; $(MAKE) BUILD=build/tsan BIN=build/tsan/estoraje SANITIZE=-fsanitize=thread
	ESTORAJE_TEST_SLOW=5 TSAN_OPTIONS=halt_on_error=1 $(MAKE) test BIN=build/tsan/estoraje TESTS=api
fuzz: $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz_*.c))
	@for f in $^; do mkdir -p $$f.found && $$f -max_total_time=$(or $(SECONDS_EACH),60) $$f.found || exit 1; done
run: $(BIN) | packages-run ; @tests/run.sh
bench: $(BIN) $(BUILD)/bench_bare | packages-bench ; @tests/bench.sh
fmt: | packages-fmt ; clang-format -i *.[ch] tests/*.[ch]
fixture: $(BUILD)/test_fixture ; FIXTURE=1 $<
loc: | packages-loc ; @cloc --quiet --csv $(CODE) | awk -F, '$$2 == "SUM" { print $$5 " lines of code, of 5401"; exit $$5 > 5401 }'
clean: ; rm -rf build estoraje
install: $(BIN) | packages-install ; help2man -N -n 'a small distributed key-value store' -o $(BUILD)/estoraje.1 ./$(BIN)
	sed 's|/usr/local|$(PREFIX)|' operate/estoraje.service | install -D -m 644 /dev/stdin $(TO)/lib/systemd/system/estoraje.service
	install -D -t $(TO)/bin $(BIN)
	install -D -m 644 -t $(TO)/share/man/man1 $(BUILD)/estoraje.1
	install -D -m 644 -t $(TO)/share/doc/estoraje README.md LICENSE nginx.conf
	install -D -t $(TO)/share/doc/estoraje operate/backup.sh operate/restore.sh
uninstall: ; cd $(TO) && rm -rf bin/estoraje share/man/man1/estoraje.1 share/doc/estoraje lib/systemd/system/estoraje.service
.PHONY: test sim mutants asan tsan fuzz run bench fmt fixture loc clean install uninstall
