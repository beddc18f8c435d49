# make        builds ./estoraje                         make test   runs all tests
# make run    three nodes behind nginx, on port 8000    make sim    SEEDS=n, or SEED=n TRACE=1
# make install   PREFIX=/usr/local DESTDIR=         make uninstall takes it away again
# make asan tsan fuzz mutants bench fmt fixture loc clean   Debian packages that are missing get installed.
CC = gcc
CFLAGS = -O2 -g -std=gnu11 -Wall -Wextra -Werror -Wshadow -D_GNU_SOURCE $(SANITIZE)
LIBS = -lmicrohttpd -lgnutls -lcurl -lxxhash -lpthread
CODE = estoraje.c ring.c ring.h

# Where to build and what to test, the cheap first: asan and tsan say otherwise.
BUILD = build
BIN = estoraje
NAMES = $(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c))
CHEAP = ring history unit sim
TESTS = $(patsubst sim,sim mutants mutations,$(filter $(NAMES),$(CHEAP))) $(filter-out $(CHEAP),$(NAMES))
export ESTORAJE_BIN = $(abspath $(BIN))
export CK_DEFAULT_TIMEOUT = 300
$(shell mkdir -p $(BUILD))
PREFIX = /usr/local
TO = $(DESTDIR)$(PREFIX)

# All tests are linked with the same. Those of what is inside the program #include estoraje.c.
VPATH = tests
HELPERS = $(patsubst %.c,$(BUILD)/%.o,ring.c page.c $(notdir $(wildcard tests/history.c tests/cluster.c)))
LINK_TEST = $(CC) $(CFLAGS) -o $@ $< $(HELPERS) $(LIBS) -lcheck_pic -lsubunit -lm

all: $(BIN)
$(BIN): $(CODE) $(BUILD)/page.o
	$(CC) $(CFLAGS) -o $@ $(filter-out %.h,$^) $(LIBS)
$(BUILD)/page.o: ring.html | packages
	printf '%s\n' '.section .rodata' '.global ring_html_start, ring_html_end' 'ring_html_start:' \
	    '.incbin "$<"' 'ring_html_end:' '.section .note.GNU-stack' | $(CC) -x assembler -c -o $@ -
$(BUILD)/%.o: %.c %.h | packages-test
	$(CC) $(CFLAGS) -c -o $@ $<
$(BUILD)/test_%: test_%.c $(CODE) $(HELPERS)
	$(LINK_TEST)
$(BUILD)/test_guard: HELPERS += $(BUILD)/forge.o
$(BUILD)/test_guard: $(BUILD)/forge.o
$(BUILD)/forge.o: $(CODE)
$(BUILD)/test_mutants: test_sim.c $(CODE) $(HELPERS)
	$(LINK_TEST) -DMUTANTS
$(BUILD)/test_mutations: test_sim.c $(CODE) $(HELPERS) tests/mutate.pl tests/mutations
	perl tests/mutate.pl tests/mutations estoraje.c $(BUILD)
	$(LINK_TEST) -DMUTANTS -DMUTATIONS -DCODE='"mutated.c"' -I$(BUILD) -I.
$(BUILD)/test_page: | packages-page
$(BUILD)/test_clients: | packages-clients
$(BUILD)/fuzz_%: fuzz_%.c $(CODE) $(BUILD)/page.o | packages-fuzz
	clang $(CFLAGS) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o $@ $< ring.c $(BUILD)/page.o $(LIBS)

test: $(BIN) $(TESTS:%=$(BUILD)/test_%)
	@for test in $(TESTS); do $(BUILD)/test_$$test || exit 1; done
sim: $(BUILD)/test_sim ; CK_TIMEOUT_MULTIPLIER=1000 $<
mutants: $(BUILD)/test_mutants $(BUILD)/test_mutations
	@for test in $^; do CK_TIMEOUT_MULTIPLIER=1000 $$test || exit 1; done
asan:
	$(MAKE) test BUILD=build/asan BIN=build/asan/estoraje TESTS="$(filter $(NAMES),ring unit sim)" \
	    SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all"
tsan:
	$(MAKE) BUILD=build/tsan BIN=build/tsan/estoraje SANITIZE=-fsanitize=thread
	ESTORAJE_TEST_SLOW=5 TSAN_OPTIONS=halt_on_error=1 $(MAKE) test BIN=build/tsan/estoraje TESTS=api
fuzz: $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/fuzz_*.c))
	@for f in $^; do mkdir -p $$f.found && $$f -max_total_time=$(or $(SECONDS_EACH),60) $$f.found || exit 1; done
run: $(BIN)     ; @tests/install.sh nginx curl && tests/run.sh
$(BUILD)/bench_bare: bench_bare.c ; $(CC) $(CFLAGS) -o $@ $< -lmicrohttpd
bench: $(BIN) $(BUILD)/bench_bare ; @tests/install.sh wrk etcd-server nginx curl && tests/bench.sh
fmt:            ; @tests/install.sh clang-format && clang-format -i *.[ch] tests/*.[ch]
fixture: $(BUILD)/test_fixture ; FIXTURE=1 $<
loc:            ; @tests/install.sh cloc && cloc --quiet --csv $(CODE) | \
	    awk -F, '$$2 == "SUM" { print $$5 " lines of code, of 5486"; exit $$5 > 5486 }'
clean:          ; rm -rf build estoraje
install: $(BIN) ; @tests/install.sh help2man
	help2man -N -n 'a small distributed key-value store' -o $(BUILD)/estoraje.1 ./$(BIN)
	sed 's|/usr/local|$(PREFIX)|' operate/estoraje.service >$(BUILD)/estoraje.service
	install -D -t $(TO)/bin $(BIN)
	install -D -m 644 -t $(TO)/share/man/man1 $(BUILD)/estoraje.1
	install -D -m 644 -t $(TO)/lib/systemd/system $(BUILD)/estoraje.service
	install -D -m 644 -t $(TO)/share/doc/estoraje README.md LICENSE nginx.conf
	install -D -t $(TO)/share/doc/estoraje operate/backup.sh operate/restore.sh
uninstall:
	cd $(TO) && rm -rf bin/estoraje share/man/man1/estoraje.1 share/doc/estoraje lib/systemd/system/estoraje.service
packages:       ; @tests/install.sh gcc libc6-dev libmicrohttpd-dev libcurl4-openssl-dev libxxhash-dev
packages-test: packages ; @tests/install.sh check nginx curl prometheus systemd help2man
packages-clients: ; @tests/install.sh restic ccache git nix-bin qemu-utils qemu-block-extra aria2 wget
packages-page:  ; @tests/install.sh chromium && (command -v npm >/dev/null || tests/install.sh nodejs npm)
	@[ -d build/node_modules ] || npm install --silent --no-save --prefix build playwright-core
packages-fuzz:  ; @tests/install.sh clang libclang-rt-14-dev
.PHONY: all test sim mutants asan tsan fuzz run bench fmt fixture loc clean install uninstall packages packages-test packages-clients packages-page packages-fuzz
