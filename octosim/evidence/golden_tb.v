// Holds the vectors of one layer against a MAC of its register: every sum of the forward pass, read from the hex files beside this one.
// Put your own unit in place of `take` and `finish`.  iverilog -o tb @STEM@_tb.v && ./tb, in this folder.

module @MODULE@_tb;

@CONSTANTS@
    localparam X_SIZE = BATCH * HEIGHT * WIDTH * CHANNELS;                    // batch, row, column, channel
    localparam W_SIZE = FILTERS * KERNEL_H * KERNEL_W * DEPTH;                // filter, row, column, channel
    localparam PART = FILTERS / GROUPS;                                       // filters of a group, which see its DEPTH channels
    localparam Y_SIZE = BATCH * OUT_H * OUT_W * FILTERS;                      // batch, row, column, filter

    reg signed [7:0] x [0:X_SIZE - 1];
    reg signed [7:0] w [0:W_SIZE - 1];
    reg signed [31:0] wanted [0:Y_SIZE - 1];

    reg signed [63:0] sum, since, pair, others, data;                         // the register, and what has come in since its last step
    integer count, wrong, at, b, h, v, f, i, j, c, row, column;

    function signed [63:0] narrow(input signed [63:0] value, input integer width, input integer saturates);
        reg signed [63:0] limit;
        begin
            limit = 64'sd1 <<< (width - 1);
            if (saturates != 0)
                narrow = value < -limit ? -limit : value >= limit ? limit - 64'sd1 : value;
            else
                narrow = ((value + limit) & (2 * limit - 64'sd1)) - limit;
        end
    endfunction

    task end_pair;
        begin
            since = since + (PAIR_BITS != 0 ? narrow(pair, PAIR_BITS != 0 ? PAIR_BITS : 8, 1) : pair);
            pair = 0;
        end
    endtask

    task end_group;
        begin
            end_pair;
            sum = narrow(sum + since, BITS, SATURATE);
            since = 0;
        end
    endtask

    task take(input signed [63:0] code, input signed [63:0] weight);
        begin
            pair = pair + (UNSIGNED != 0 ? code + 64'sd128 : code) * weight;
            others = others + weight;
            count = count + 1;
            if (count % GROUP == 0)
                end_group;
            else if (count % GROUP % 2 == 0)
                end_pair;
        end
    endtask

    task finish;
        begin
            end_group;
            sum = narrow(sum - (UNSIGNED != 0 ? 64'sd128 * others : 64'sd0), 32, 0);
            if (sum !== wanted[at]) begin
                if (wrong == 0)
                    $display("@LAYER@ forward: sum %0d is %0d, the vectors have %0d", at, sum, wanted[at]);
                wrong = wrong + 1;
            end
            at = at + 1;
        end
    endtask

    initial begin
        $readmemh("@STEM@_x.hex", x);
        $readmemh("@STEM@_w.hex", w);
        $readmemh("@STEM@_forward.hex", wanted);
        wrong = 0;
        at = 0;
        for (b = 0; b < BATCH; b = b + 1)
            for (h = 0; h < OUT_H; h = h + 1)
                for (v = 0; v < OUT_W; v = v + 1)
                    for (f = 0; f < FILTERS; f = f + 1) begin
                        sum = 0; since = 0; pair = 0; others = 0; count = 0;
                        for (i = 0; i < KERNEL_H; i = i + 1)
                            for (j = 0; j < KERNEL_W; j = j + 1)
                                for (c = 0; c < DEPTH; c = c + 1) begin
                                    row = h * STRIDE_H + i * DILATION_H - PAD_TOP;
                                    column = v * STRIDE_W + j * DILATION_W - PAD_LEFT;
                                    data = X_ZERO;                            // outside the image
                                    if (row >= 0 && row < HEIGHT && column >= 0 && column < WIDTH)
                                        data = x[((b * HEIGHT + row) * WIDTH + column) * CHANNELS + f / PART * DEPTH + c];
                                    take(data, w[((f * KERNEL_H + i) * KERNEL_W + j) * DEPTH + c]);
                                end
                        finish;
                    end
        $display("@LAYER@ forward: %0d sums, %0d wrong", at, wrong);
        $finish;
    end
endmodule
